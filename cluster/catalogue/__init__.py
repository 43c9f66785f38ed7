"""The catalogue of GPU classes: what each one is called at each vendor, costs, and achieves."""
