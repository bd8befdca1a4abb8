"""Commands of `kvwatt`; cli.py imports each only when it is called."""
