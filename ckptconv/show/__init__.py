"""Result records -> what a person or a program reads. Knows records only, never how they came about."""
