"""A small compiler: a MobileNet as machine code made for it. `native.NativeEngine` is what users get of it."""
