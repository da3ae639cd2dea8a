"""The shop window: decoder, predictor, saliency and page. This folder is a complete Gradio Space by itself."""
