"""File formats of other systems, written and read strictly, with nothing known of networks."""
