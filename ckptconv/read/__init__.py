"""From views to elements, in bounded memory."""
