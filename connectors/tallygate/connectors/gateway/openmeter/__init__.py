"""OpenMeter's API where it matters, so that its SDKs and integrations work unchanged.

What an id is there is a name here: a meter's slug and id are its name, a feature's key and id, a customer's key, id and
subject likewise, and an entitlement's id is its feature's key, because a customer has one entitlement to a feature.
What cannot be said here is refused with 501, and nothing that was asked for is left out in silence.
"""
