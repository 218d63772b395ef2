"""How a step learns and what is measured, one module a recipe; `recipe` is what they offer."""
