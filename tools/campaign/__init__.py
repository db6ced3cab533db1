"""The parts of fault_campaign: the small runs that are disturbed, and what disturbs them."""
