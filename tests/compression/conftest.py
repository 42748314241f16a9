from tests.small_models import loaded, stats_folder, stats_model, text

__all__ = ["loaded", "stats_folder", "stats_model", "text"]
