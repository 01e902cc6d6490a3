"""The protocol of an index store, and the choice of a store by its address."""
