"""Parts of the network whose backward passes are written out, to hold less and compute faster than autograd would."""
