"""Systems for a task: a backbone of any family behind timm, with decoder, losses and metrics."""
