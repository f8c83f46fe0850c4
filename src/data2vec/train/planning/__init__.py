"""What a run will be, before it starts: its plan, what would be unwise, and what one step costs."""
