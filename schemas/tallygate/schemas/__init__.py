"""The vocabulary on the wire: events, requests, answers, journal records, postings, topics."""
