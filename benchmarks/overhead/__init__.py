"""What watching costs, beside the cheapest thing that could be done and beside what people use instead."""
