"""How the model came to the score of an image and a sentence, and how that is drawn: the report's and the search's."""
