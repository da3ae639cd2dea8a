"""A classifier with a small perceptron as its head: global maximum pooling, a hidden layer with ReLU, the classes.

A model folder with this head holds a copy of this file, so that
pipeline("image-classification", model=FOLDER, trust_remote_code=True) loads it wherever transformers is installed.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class MlpHeadConfig(PreTrainedConfig):
    """body: the configuration of the network below, as a dictionary with its model_type; hidden: units in between.

    Where the body came from is left out, for that may be a folder of one's own.
    """

    model_type = "mlp-head"

    def __init__(self, body: dict | None = None, hidden: int = 16, **settings):
        self.body, self.hidden = {key: value for key, value in (body or {}).items() if key != "_name_or_path"}, hidden
        super().__init__(**settings)


class MlpHeadForImageClassification(PreTrainedModel):
    """Any body of AutoModel with the head of the module's docstring; (images, 3, height, width) to logits."""

    config_class = MlpHeadConfig
    base_model_prefix = "body"
    main_input_name = "pixel_values"

    def __init__(self, config: MlpHeadConfig):
        super().__init__(config)
        body = AutoConfig.for_model(**config.body)
        self.body = AutoModel.from_config(body)
        width = body.hidden_sizes[-1] if getattr(body, "hidden_sizes", None) else body.hidden_size
        self.classifier = nn.Sequential(
            nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.num_labels)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and any(module is layer for layer in self.classifier):
            module.reset_parameters()  # the body has been initialised by its own rules

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> ImageClassifierOutput:
        seen = self.body(pixel_values=pixel_values, output_hidden_states=output_hidden_states)
        maps = seen.last_hidden_state
        # (images, channels, rows, columns) of a convolutional body, (images, tokens, channels) of a transformer
        features = maps.flatten(2).amax(-1) if maps.ndim == 4 else maps.amax(1)
        logits = self.classifier(features)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=seen.hidden_states)


AutoConfig.register("mlp-head", MlpHeadConfig, exist_ok=True)
AutoModelForImageClassification.register(MlpHeadConfig, MlpHeadForImageClassification, exist_ok=True)
MlpHeadConfig.register_for_auto_class()
MlpHeadForImageClassification.register_for_auto_class("AutoModelForImageClassification")
