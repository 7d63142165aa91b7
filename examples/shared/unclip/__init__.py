"""What clip.py and dalle2.py share: captions that leave things out, the encoder, the prior and the decoder."""
