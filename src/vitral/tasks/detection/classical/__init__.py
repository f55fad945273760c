"""How objects were found before networks did it.

Proposals from segments of the picture (`selective_search`, which needs scikit-image), and a window that slides over it with
histograms of gradients inside (`hog`, which needs scikit-learn to learn). The extra `classical` brings both.
"""

__all__: list[str] = []
