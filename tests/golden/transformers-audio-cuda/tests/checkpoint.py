"""A small checkpoint with random weights: real enough to load, far too small to be right."""

import json
from pathlib import Path


def make_checkpoint(folder: Path) -> Path:
    """Write a speech recogniser of a few letters."""
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    torch.manual_seed(1)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"EINOST"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    config = Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        initializer_range=0.5,
    )
    model = Wav2Vec2ForCTC(config)
    # Letters only, so that there is something to read.
    torch.nn.init.constant_(model.lm_head.bias[: letters.index("E")], -100.0)
    model.save_pretrained(folder)
    Wav2Vec2Processor(
        Wav2Vec2FeatureExtractor(), Wav2Vec2CTCTokenizer(str(vocabulary))
    ).save_pretrained(folder)
    return folder
