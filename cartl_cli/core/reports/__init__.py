"""From finished runs to tables: means, tests, and the paper beside them."""
