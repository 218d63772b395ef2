"""Many trials: the policy that decides, the controller that acts, and what people see of it."""
