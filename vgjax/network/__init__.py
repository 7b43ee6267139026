"""The MLP family in Flax: its dense layer, its modules, and the names of layers."""
