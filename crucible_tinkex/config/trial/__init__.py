"""What a trial is: sections whose settings decide its numbers."""
