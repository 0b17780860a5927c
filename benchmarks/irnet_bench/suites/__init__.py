"""The cases that irnet comes with, one file per suite. Defines them, measures nothing."""
