"""Policies: which ids come next (`draw`) and how much each counts (`weigh`). Pure: arrays in, arrays out."""
