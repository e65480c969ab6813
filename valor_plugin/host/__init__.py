"""Every fact about OpenRLHF, Ray, DeepSpeed and vLLM; `seams` has the table of what is replaced."""
