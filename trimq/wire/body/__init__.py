"""JSON bodies as typed values. One module per family; `base` says how they are read and written."""
