"""Circuit files: reading OpenQASM 3 and QPY safely, and writing them."""
