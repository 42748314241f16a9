"""The Streamlit app: pages, components, session state. No maths, no torch."""
