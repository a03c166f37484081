"""What a command is told: its keys, and how a command line and a recipe become them."""
