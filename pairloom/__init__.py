"""pairloom: image URLs to a curated WebDataset to CLIP, SigLIP and LLaVA, and back as the filter of the next round."""
