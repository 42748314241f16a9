from tests.small_decoders import decoder_folder

__all__ = ["decoder_folder"]
