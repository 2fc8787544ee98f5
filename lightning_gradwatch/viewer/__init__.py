"""The other program: reads what a run has written and shows it; it never imports torch, Lightning or the floors."""
