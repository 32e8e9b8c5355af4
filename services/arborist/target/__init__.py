"""The target worker: the model being served; it verifies trees and owns the truth."""
