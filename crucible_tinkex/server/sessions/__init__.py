"""Sessions and their models: what is asked, checked, ordered and promised."""
