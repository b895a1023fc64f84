"""What parts a network has, how much each is needed, and the network without some of them."""
