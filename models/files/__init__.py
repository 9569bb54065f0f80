"""Files of arrays and galleries, read without belief in what their headers claim."""
