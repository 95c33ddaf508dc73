"""A program that writes to a Redis at random, as somebody who may write there could."""
