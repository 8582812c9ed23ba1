"""What circuits are and do: audits, expressibility, cross-checks of engines, ISA circuits."""
