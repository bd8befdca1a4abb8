"""`kvwatt doctor`: pure checks over facts, and thin collectors that gather the facts under deadlines."""
