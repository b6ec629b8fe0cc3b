"""One file per operator: against PyTorch in float64, on buffers that show a stray read or write."""
