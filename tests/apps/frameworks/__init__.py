"""Applications written with the frameworks that people use, as they would write them."""
