"""What users see: progress and status lines, quantities in words."""
