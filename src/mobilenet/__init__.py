"""MobileNet V1 and V2, from formula to labels."""
