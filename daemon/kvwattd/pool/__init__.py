"""The pool's task: how many instances run, planned every few seconds and handed to the scaler."""
