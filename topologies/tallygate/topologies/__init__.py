"""The wiring: the Faust app, partition owners, the journal, tables, the sink, settings, the command line."""
