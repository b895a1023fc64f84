"""What makes training hold less and compute faster: backward passes that are written out, and shapes that recur."""
