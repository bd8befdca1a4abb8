"""`kvwatt report`: what the ledger proves, as a table, JSON or a page."""
