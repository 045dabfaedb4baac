"""The PyTorch device `remora`: a tensor that names a value on an executor, and the dispatch that records ops."""
