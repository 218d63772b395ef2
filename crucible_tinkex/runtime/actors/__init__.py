"""The actors on Ray, and the handles through which others call them."""
