"""The similarity above which two walks count as one person's."""
