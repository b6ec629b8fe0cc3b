"""For every notebook, the mistakes that the checkers of its exercises must find: see test_exercises.py."""
