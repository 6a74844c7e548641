"""The Claude Batches page: what Airflow's API server knows of submissions, for people who may read their Dags."""
